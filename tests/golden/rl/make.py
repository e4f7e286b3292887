"""Losses of reinforcement learning and their gradients, by TRL's own code and by plain PyTorch, in 64 bits.

Writes `losses.json`: the tensors that go in, and for each case the loss and its gradient by the logits.

    pip install torch==2.11.0 trl==1.16.0
    python tests/golden/rl/make.py
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from trl import GRPOTrainer

SEQUENCES, TOKENS, VOCAB = 6, 5, 7
LENGTHS = [5, 3, 4, 1, 5, 2]
MOST_TOKENS = 8

torch.manual_seed(11)
# Rounded to 32 bits, which is what the host keeps of them.
logits = torch.randn(SEQUENCES, TOKENS, VOCAB).double()
tokens = torch.randint(VOCAB, (SEQUENCES, TOKENS))
mask = torch.tensor([[1] * n + [0] * (TOKENS - n) for n in LENGTHS])
chosen = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
sampler = (chosen + 0.9 * torch.randn(SEQUENCES, TOKENS).double()).float().double()
reference = (chosen + 0.3 * torch.randn(SEQUENCES, TOKENS).double()).float().double()
advantages = torch.tensor([1.25, -0.75, 0.5, -1.5, 0.0, 2.0]).double()


def trl(loss_type, level="token", low=0.2, high=0.28, delta=None, beta=0.0, entropy=0.0):
    """The loss of `GRPOTrainer._compute_loss` for given log-probabilities."""
    leaf = logits.clone().requires_grad_(True)

    def of_tokens(*_args, **_kwargs):
        distribution = leaf.log_softmax(-1)
        picked = distribution.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return picked, -(distribution.exp() * distribution).sum(-1), None

    class Trainer(SimpleNamespace):
        _compute_loss = GRPOTrainer._compute_loss

    from collections import defaultdict

    trainer = Trainer(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=level,
        beta=beta, loss_type=loss_type, epsilon_low=low, epsilon_high=high, use_vllm=False, model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1, max_completion_length=MOST_TOKENS, _entropy_bonus_enabled=entropy != 0.0,
        use_adaptive_entropy=False, entropy_coef=entropy, _get_per_token_logps_and_entropies=of_tokens,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        accelerator=SimpleNamespace(gather=lambda x: x, num_processes=1, sync_gradients=True, reduce=lambda x, reduction: x),
    )
    inputs = {
        "prompt_ids": torch.zeros(SEQUENCES, 1, dtype=torch.long), "prompt_mask": torch.ones(SEQUENCES, 1, dtype=torch.long),
        "completion_ids": tokens, "completion_mask": mask, "advantages": advantages, "old_per_token_logps": sampler,
        "ref_per_token_logps": reference, "num_items_in_batch": mask.sum(),
    }
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), leaf.grad


def plain(token_loss, weights):
    """The weighted sum of a loss of single tokens, which gets their log-probabilities."""
    leaf = logits.clone().requires_grad_(True)
    picked = leaf.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    loss = (token_loss(picked) * mask * weights).sum()
    loss.backward()
    return loss.item(), leaf.grad


def dual_clip(picked, bound=1.3):
    ratio, a = (picked - sampler).exp(), advantages.unsqueeze(1)
    losses = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.28))
    return torch.where(a < 0, torch.minimum(losses, -a * bound), losses)


def gspo_token(picked):
    gap = ((picked - sampler) * mask).sum(-1) / mask.sum(-1)
    ratio = gap.exp().unsqueeze(-1).detach() * (picked - picked.detach()).exp()
    a = advantages.unsqueeze(1)
    return torch.maximum(-a * ratio, -a * ratio.clamp(1 - 0.1, 1 + 0.15))


def with_divergence(estimate):
    def loss(picked):
        ratio, a = (picked - sampler).exp(), advantages.unsqueeze(1)
        return torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.28)) + 0.05 * estimate(picked - reference)

    return loss


def imitated(picked):
    """A positive-example loss of 0.1 over the mean of the tokens with a positive advantage (VAPO), beside GRPO."""
    ratio, a = (picked - sampler).exp(), advantages.unsqueeze(1)
    losses = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.28)) * sequence_mean
    right = (a > 0) * mask
    return losses - 0.1 * right / right.sum() * picked


sequence_mean = 1.0 / (SEQUENCES * mask.sum(-1, keepdim=True).double())
token_mean = torch.full((SEQUENCES, 1), 1.0 / mask.sum().item()).double()
cases = {
    "grpo": trl("grpo"),
    "grpo, ratio cap": trl("grpo", delta=1.35),
    "grpo, k3": trl("grpo", beta=0.05),
    "grpo, k1": plain(with_divergence(lambda gap: gap), sequence_mean),
    "grpo, k2": plain(with_divergence(lambda gap: gap.square() / 2), sequence_mean),
    "grpo, imitation": plain(imitated, 1.0),
    "dapo": trl("dapo"),
    "dapo, entropy": trl("dapo", entropy=0.01),
    "dapo, dual clip": plain(dual_clip, token_mean),
    "dr-grpo": trl("dr_grpo"),
    "gspo": trl("grpo", level="sequence", low=0.1, high=0.15),
    "gspo-token": plain(gspo_token, sequence_mean),
    "cispo": trl("cispo", high=1.28),
    "reinforce": plain(lambda picked: -advantages.unsqueeze(1) * (picked - sampler).exp(), token_mean),
}

written = {
    "lengths": LENGTHS, "most_tokens": MOST_TOKENS, "logits": logits.tolist(), "tokens": tokens.tolist(), "sampler": sampler.tolist(),
    "reference": reference.tolist(), "advantages": advantages.tolist(),
    "cases": {name: {"loss": loss, "gradient": gradient.tolist()} for name, (loss, gradient) in cases.items()},
}
Path(__file__).with_name("losses.json").write_text(json.dumps(written) + "\n")
print({name: round(loss, 6) for name, (loss, _) in cases.items()})
