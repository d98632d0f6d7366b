// float16 as a GPU converts it, in bits: not every g++ has such a type.
#pragma once

inline unsigned bits_of_float(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return bits;
}

inline float float_of_bits(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

inline float half_to_float(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16;
    const unsigned exponent = bits >> 10 & 31u, fraction = bits & 1023u;
    if (exponent == 0) {
        return float_of_bits(sign | bits_of_float(fraction * 5.9604644775390625e-8f));
    }
    const unsigned float_exponent = exponent == 31 ? 255u : exponent + 112;
    return float_of_bits(sign | float_exponent << 23 | fraction << 13);
}

// To the nearest, and of two to the even one.
inline unsigned short float_to_half(float value) {
    const unsigned sign = bits_of_float(value) >> 16 & 0x8000u;
    const unsigned bits = bits_of_float(value) & 0x7fffffffu;
    if (bits > 0x7f800000u) return 0x7fffu;
    const unsigned infinity = 0x7c00u, least_infinite = 0x477ff000u, least_normal = 0x38800000u;
    if (bits >= least_infinite) return static_cast<unsigned short>(sign | infinity);
    if (bits < least_normal) {
        // Beside 0.5 a float has just the bits of a subnormal float16.
        const unsigned rounded = bits_of_float(float_of_bits(bits) + 0.5f) - bits_of_float(0.5f);
        return static_cast<unsigned short>(sign | rounded);
    }
    const unsigned rounded = bits + 0xfffu + (bits >> 13 & 1u) - 0x38000000u;
    return static_cast<unsigned short>(sign | rounded >> 13);
}
