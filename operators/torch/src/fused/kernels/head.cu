// The distribution over the vocabulary: what a loss needs of it, and the gradient of the logits in their place. One block for each row.
//
// Shapes: logits [rows, VOCAB] bf16; tokens [rows] i64; the rest [rows] f32.

#define HEAD_THREADS 512

// Sums relative to the largest value so far, so that no exponential overflows.
struct Shares {
    float top, sum, weighted;

    __device__ __forceinline__ void rise(float other) {
        if (other <= top) return;
        const float shrink = __expf(top - other);
        weighted = shrink * (weighted + (top - other) * sum);
        sum *= shrink;
        top = other;
    }

    __device__ __forceinline__ void join(Shares other) {
        rise(other.top);
        other.rise(top);
        sum += other.sum;
        weighted += other.weighted;
    }
};

// Log-sum-exp, log-probability of the token, and entropy in nats.
extern "C" __global__ void __launch_bounds__(HEAD_THREADS)
    distribution(const u16* logits, const long long* tokens, float* logsumexp, float* logprobs, float* entropies) {
    __shared__ Shares parts[HEAD_THREADS / 32];
    const u64 row = blockIdx.x;
    const uint4* values = reinterpret_cast<const uint4*>(logits + row * VOCAB);
    // Far below any logit, but finite: no difference of two of them is undefined.
    Shares shares = {-1e30f, 0.0f, 0.0f};
    for (int place = threadIdx.x; place < VOCAB / 8; place += HEAD_THREADS) {
        float eight[8];
        unpack(values[place], eight);
        float top = eight[0];
#pragma unroll
        for (int index = 1; index < 8; index++) top = fmaxf(top, eight[index]);
        shares.rise(top);
#pragma unroll
        for (int index = 0; index < 8; index++) {
            const float below = eight[index] - shares.top, share = __expf(below);
            shares.sum += share;
            shares.weighted += share * below;
        }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        shares.join(Shares{__shfl_xor_sync(FULL_WARP, shares.top, step), __shfl_xor_sync(FULL_WARP, shares.sum, step),
                           __shfl_xor_sync(FULL_WARP, shares.weighted, step)});
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = shares;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < HEAD_THREADS / 32; warp++) shares.join(parts[warp]);
    const float all = shares.top + logf(shares.sum);
    logsumexp[row] = all;
    logprobs[row] = wide(logits[row * VOCAB + tokens[row]]) - all;
    entropies[row] = logf(shares.sum) - shares.weighted / shares.sum;
}

// With g and h the gradients of log-probability and entropy H: d z_j = g (1[j = token] - p_j) - h p_j (log p_j + H).
extern "C" __global__ void __launch_bounds__(HEAD_THREADS)
    distribution_backward(u16* logits, const long long* tokens, const float* logsumexp, const float* entropies, const float* of_logprobs,
                          const float* of_entropies) {
    const u64 row = blockIdx.x;
    uint4* values = reinterpret_cast<uint4*>(logits + row * VOCAB);
    const float all = logsumexp[row], g = of_logprobs[row], h = of_entropies[row], entropy = entropies[row];
    const int token = int(tokens[row]);
    for (int place = threadIdx.x; place < VOCAB / 8; place += HEAD_THREADS) {
        float eight[8];
        unpack(values[place], eight);
#pragma unroll
        for (int index = 0; index < 8; index++) {
            const float log_share = eight[index] - all;
            eight[index] = -__expf(log_share) * (g + h * (log_share + entropy));
            if (place * 8 + index == token) eight[index] += g;
        }
        values[place] = pack_eight(eight);
    }
}
