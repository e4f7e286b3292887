// What all kernels share. The sizes of the model come as macros: HIDDEN, INTERMEDIATE, HEADS, KEY_HEADS, HEAD_DIM, PAGE, VOCAB.
//
// Types: bf16 values are held as unsigned 16-bit words, two of them in an unsigned 32-bit word with the first in the low half.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define GROUP (HEADS / KEY_HEADS)
#define QKV_HEADS (HEADS + 2 * KEY_HEADS)
#define FULL_WARP 0xffffffffu
#define INFINITY __int_as_float(0x7f800000)

__device__ __forceinline__ float first(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float second(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float wide(u16 value) { return __uint_as_float(u32(value) << 16); }

__device__ __forceinline__ u32 pack(float first, float second) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

__device__ __forceinline__ void unpack(uint4 eight, float* values) {
    values[0] = first(eight.x), values[1] = second(eight.x), values[2] = first(eight.y), values[3] = second(eight.y);
    values[4] = first(eight.z), values[5] = second(eight.z), values[6] = first(eight.w), values[7] = second(eight.w);
}

__device__ __forceinline__ uint4 pack_eight(const float* values) {
    return make_uint4(pack(values[0], values[1]), pack(values[2], values[3]), pack(values[4], values[5]), pack(values[6], values[7]));
}

__device__ __forceinline__ u16 narrow(float value) { return u16(pack(value, 0.0f)); }

template <typename Value>
__device__ __forceinline__ Value warp_sum(Value value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(FULL_WARP, value, step);
    return value;
}

// Sum over a block of THREADS threads, given to all of them. The order of additions is fixed.
template <int THREADS>
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float parts[THREADS / 32];
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++) sum += parts[warp];
    return sum;
}

// Philox4x32-10 (Salmon et al. 2011): four random words in place of a counter. The same as `philox.rs`.
__device__ __forceinline__ void philox(u32* counter, u32 low, u32 high) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 a = u64(0xD2511F53u) * counter[0], b = u64(0xCD9E8D57u) * counter[2];
        const u32 next[4] = {u32(b >> 32) ^ counter[1] ^ low, u32(b), u32(a >> 32) ^ counter[3] ^ high, u32(a)};
#pragma unroll
        for (int word = 0; word < 4; word++) counter[word] = next[word];
        low += 0x9E3779B9u, high += 0xBB67AE85u;
    }
}
