// Runs step.cu on the host: blocks of one thread, one after another.
//
// g++ -O1 -ffp-contract=off -shared -fPIC -DSOURCE='"step.cu"' host_cuda.cpp
#include <cmath>
#include <cstddef>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline

struct float4 {
    float x, y, z, w;
};
struct ushort4 {
    unsigned short x, y, z, w;
};
struct Index {
    unsigned x = 1, y = 1;
};
static Index blockIdx, gridDim, blockDim, threadIdx;

static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
static void __syncthreads() {}
static unsigned atomicAdd(unsigned* address, unsigned value) {
    const unsigned before = *address;
    *address += value;
    return before;
}
static unsigned short half_bits(float value) {
    const _Float16 half = (_Float16)value;
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
static float half_value(unsigned short bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return (float)half;
}

#include SOURCE

extern "C" void host_philox(unsigned long long* counter, unsigned long long k0,
                            unsigned long long k1) {
    philox(counter, k0, k1);
}

extern "C" void host_sampling_step(unsigned grid_x, unsigned grid_y, void** arguments) {
    gridDim = {grid_x, grid_y};
    blockDim = {1, 1};
    threadIdx = {0, 0};
    for (unsigned y = 0; y < grid_y; ++y)
        for (unsigned i = 0; i < grid_x; ++i) {
            blockIdx = {i, y};
            sampling_step(*(Run**)arguments[0], *(const Row**)arguments[1],
                          *(const unsigned long long**)arguments[2], *(const float**)arguments[3],
                          *(float**)arguments[4], *(const void**)arguments[5],
                          *(float**)arguments[6], *(void**)arguments[7], *(void**)arguments[8],
                          *(unsigned*)arguments[9], *(unsigned*)arguments[10],
                          *(unsigned*)arguments[11]);
        }
}
