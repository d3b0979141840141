"""Gradients of attention by PyTorch's autograd in double precision, as the C header beside this file: python3 gradients.py > gradients.h

Operands are sines, so that both sides can make them: number i of an array is sin(a + b i), see wave(). Not run by the tests: PyTorch is large.
"""
import torch

H, H_KV, M, N, D, DV = 4, 2, 5, 7, 4, 3


def wave(a, b, *shape):
    count = 1
    for size in shape:
        count *= size
    return torch.sin(a + b * torch.arange(count, dtype=torch.float64)).to(torch.float32).to(torch.float64).reshape(shape)


def gradients(softcap, with_sinks):
    q, k, v = wave(0.3, 0.7, H, M, D), wave(1.1, 0.9, H_KV, N, D), wave(2.2, 1.3, H_KV, N, DV)
    sinks, dout = wave(0.5, 2.0, H), wave(0.1, 0.6, H, M, DV)
    for x in (q, k, v, sinks):
        x.requires_grad_()
    keys, values = k.repeat_interleave(H // H_KV, 0), v.repeat_interleave(H // H_KV, 0)
    if softcap == 0 and not with_sinks:
        mask = torch.arange(N)[None] <= torch.arange(M)[:, None] + N - M
        out = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    else:
        s = q @ keys.transpose(1, 2) / D ** 0.5
        s = softcap * torch.tanh(s / softcap) if softcap else s
        s = s.masked_fill(torch.arange(N)[None] > torch.arange(M)[:, None] + N - M, float("-inf"))
        if with_sinks:
            s = torch.cat([s, sinks[:, None, None].expand(H, M, 1)], 2)
            values = torch.cat([values, torch.zeros(H, 1, DV, dtype=torch.float64)], 1)
        out = torch.softmax(s, 2) @ values
    (out * dout).sum().backward()
    return q.grad, k.grad, v.grad, sinks.grad if with_sinks else torch.zeros(H, dtype=torch.float64)


print("/* Made by gradients.py with PyTorch " + torch.__version__.split("+")[0] + ": dq, dk, dv, dsinks of each case, one after the other. */")
print("#ifndef GOLDEN_GRADIENTS_H\n#define GOLDEN_GRADIENTS_H\n")
print(f"enum {{ GOLDEN_H = {H}, GOLDEN_H_KV = {H_KV}, GOLDEN_M = {M}, GOLDEN_N = {N}, GOLDEN_D = {D}, GOLDEN_DV = {DV} }};\n")
for name, softcap, with_sinks in (("plain", 0, False), ("capped", 0.8, True)):
    numbers = torch.cat([x.flatten() for x in gradients(softcap, with_sinks)]).tolist()
    print(f"static const double golden_{name}[] = {{")
    for first in range(0, len(numbers), 6):
        print("    " + " ".join(f"{x:.15e}," for x in numbers[first:first + 6]))
    print("};\n")
print("#endif")
