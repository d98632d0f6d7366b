// What is known of the node at a place.

const int ROOT = 1;   // it has no parent
const int FIRST = 2;  // first of a subtree that hangs from the node before it by a light edge
const int LAST = 4;   // last of the latest such subtree
