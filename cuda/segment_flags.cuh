// What is known of the node at a place.

const int ROOT = 1;           // it has no parent
const int BEGINS_BRANCH = 2;  // first of a subtree that hangs from the node before by a light edge
const int ENDS_BRANCH = 4;    // last of the latest such subtree
