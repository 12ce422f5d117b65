"""An independent implementation of sleep, token by token in plain loops, against which the library is tested."""

import math

import torch
import torch.nn.functional as F


def rms(x, weight, eps=1e-6):
    return x / torch.sqrt((x * x).mean() + eps) * weight


class Oracle:
    """One row of a batch in float64. `p` maps parameter names to tensors; `m` and `s` are the `model` and `sleep` sections."""

    def __init__(self, p, m, s, passes):
        self.p, self.m, self.s, self.passes = p, m, s, passes
        self.squares = []  # after backward: squared norms of the gradient of S after every window
        self.pattern = m.layers  # without groups
        g = m.deltanet
        self.S = {
            i: torch.zeros(g.value_heads, g.head_dim, g.head_dim, dtype=torch.float64) for i in range(len(self.pattern))
        }
        self.inputs = {i: [] for i in range(len(self.pattern))}  # inputs of the convolution of layer i
        self.cache = {i: [] for i in range(len(self.pattern))}  # [(position, key, value)] of layer i

    def detach(self):
        self.S = {i: x.detach() for i, x in self.S.items()}
        self.inputs = {i: [tuple(t.detach() for t in row) for row in rows] for i, rows in self.inputs.items()}
        self.cache = {i: [(n, k.detach(), v.detach()) for n, k, v in rows] for i, rows in self.cache.items()}

    def rope(self, x, position):
        a = self.m.attention
        dims = int(a.head_dim * a.rotary)
        out = list(x)
        for j in range(dims // 2):
            angle = torch.tensor(position * a.theta ** (-2 * j / dims), dtype=torch.float64)
            left, right = x[j], x[j + dims // 2]
            out[j] = left * torch.cos(angle) - right * torch.sin(angle)
            out[j + dims // 2] = right * torch.cos(angle) + left * torch.sin(angle)
        return torch.stack(out)

    def attend(self, i, xs, position0, keep):
        a, w = self.m.attention, lambda n: self.p[f"layers.{i}.mixer.{n}.weight"]
        held, outs = list(self.cache[i]), []
        for t, x in enumerate(xs):
            n = position0 + t
            heads = lambda name: (w(name) @ x).view(-1, a.head_dim)  # noqa: E731, B023
            norm = (lambda h, name: rms(h, 1 + w(name))) if a.qk_norm else (lambda h, name: h)
            q = [self.rope(norm(h, "q_norm"), n) for h in heads("q")]
            k = [self.rope(norm(h, "k_norm"), n) for h in heads("k")]
            held.append((n, torch.stack(k), heads("v")))
            seen = [e for e in held if n - e[0] < self.s.window]
            o = []
            for j, qj in enumerate(q):
                kv = j // (a.heads // a.kv_heads)
                scores = torch.stack([(qj * e[1][kv]).sum() / math.sqrt(a.head_dim) for e in seen])
                o.append(sum(p * e[2][kv] for p, e in zip(scores.softmax(0), seen, strict=True)))
            o = torch.cat(o)
            if a.gate:
                o = o * torch.sigmoid(w("gate") @ x)
            outs.append(w("o") @ o)
        return outs, held

    def delta_net(self, i, xs):
        g, p = self.m.deltanet, lambda n: self.p[f"layers.{i}.mixer.{n}"]
        r, d, outs = g.value_heads // g.key_heads, g.head_dim, []
        for x in xs:
            self.inputs[i].append(tuple(p(f"{n}.weight") @ x for n in "qkv"))
            mixed = []
            for j, n in enumerate("qkv"):
                y = 0
                for lag in range(g.conv):
                    if lag < len(self.inputs[i]):
                        y = y + p(f"conv_{n}")[:, g.conv - 1 - lag] * self.inputs[i][-1 - lag][j]
                mixed.append(F.silu(y).view(-1, d))
            q, k, v = mixed
            alpha = torch.exp(-torch.exp(p("A_log")) * F.softplus(p("a.weight") @ x + p("dt_bias")))
            beta = torch.sigmoid(p("b.weight") @ x) * (2 if g.negative_eigenvalues else 1)
            z, new, o = (p("z.weight") @ x).view(-1, d), [], []
            for h in range(g.value_heads):
                kh = k[h // r] / torch.sqrt((k[h // r] ** 2).sum() + 1e-6)
                qh = q[h // r] / torch.sqrt((q[h // r] ** 2).sum() + 1e-6)
                S = self.S[i][h] * alpha[h]
                S = S + torch.outer(kh, beta[h] * (v[h] - kh @ S))
                new.append(S)
                o.append(rms(qh @ S / math.sqrt(d), p("norm")) * F.silu(z[h]))
            self.S[i] = torch.stack(new)
            outs.append(p("o.weight") @ torch.cat(o))
        return outs

    def one_pass(self, hs, blocks, position0, write):
        for i in range(*blocks):
            w = lambda n: self.p[f"layers.{i}.{n}.weight"]  # noqa: E731, B023
            if not self.s.evict.conv_carry:
                self.inputs[i] = []
            xs = [rms(h, 1 + w("norm1")) for h in hs]
            if self.pattern[i] == "A":
                ys, held = self.attend(i, xs, position0, write)
                if write:
                    self.cache[i] = held
            else:
                ys = self.delta_net(i, xs)
            out = (lambda y, n: rms(y, 1 + w(n))) if self.m.norm == "sandwich" else (lambda y, n: y)  # noqa: B023
            hs = [h + self.m.residual_scale * out(y, "out1") for h, y in zip(hs, ys, strict=True)]
            ns = [rms(h, 1 + w("norm2")) for h in hs]
            ms = [w("mlp.down") @ (F.silu(w("mlp.gate") @ n) * (w("mlp.up") @ n)) for n in ns]
            hs = [h + self.m.residual_scale * out(m, "out2") for h, m in zip(hs, ms, strict=True)]
        return hs

    def window(self, tokens, targets, first, scored, last):
        s, depth = self.s, len(self.pattern)
        lo, hi = (0, depth) if s.loop.layers == "all" else s.loop.layers
        sleeps = (not scored) if s.loop.trigger == "context" else (not last)
        n, sliding = (self.passes if sleeps else 1), s.evict.mode == "sliding"
        k = n if s.gradient.passes == "all" else min(n, s.gradient.passes)
        position0 = first if sliding else 0
        embed = lambda: [self.p["embed.weight"][t] for t in tokens]  # noqa: E731
        loss, above = torch.zeros((), dtype=torch.float64), self.one_pass(embed(), (0, lo), position0, sliding)
        hs = above
        for i in range(1, n + 1):
            if i > 1 and i == n - k + 1:
                self.detach()
                hs, above = [h.detach() for h in hs], [h.detach() for h in above]
            if i > 1 and s.loop.feedback == "normed":
                hs = [rms(h, 1 + self.p["norm.weight"]) for h in hs]
            if i > 1 and s.loop.feedback == "embeddings":
                hs = embed() if lo == 0 else above
            if i > 1 and s.loop.feedback == "gated":
                hs = [e + rms(h, self.p["feedback.weight"]) for e, h in zip(embed(), hs, strict=True)]
            hs = self.one_pass(hs, (lo, hi), position0, sliding and i == n)
            top = hs
            if i == (n if s.loop.trigger == "context" else 1):
                top = self.one_pass(hs, (hi, depth), position0, sliding)
            if i == 1 and scored:
                loss = sum(self.score(h, t) for h, t in zip(top, targets, strict=True) if t != -100)
        for i in self.cache:
            self.cache[i] = self.cache[i][-(s.window - 1) :] if sliding and s.window > 1 else []
        return loss

    def score(self, h, target):
        head = self.p.get("head.weight", self.p["embed.weight"])
        return -torch.log_softmax(head @ rms(h, 1 + self.p["norm.weight"]), 0)[target]

    def loss(self, tokens, targets, windows):
        total = torch.zeros((), dtype=torch.float64)
        for i, w in enumerate(windows):
            part = slice(w.start, w.stop)
            total = total + self.window(
                tokens[part].tolist(), targets[part].tolist(), w.start, w.targets, i == len(windows) - 1
            )
            every = self.s.gradient.windows
            if every != "all" and (i + 1) % every == 0:
                self.detach()
            elif i < len(windows) - 1:
                self.watch(i, (targets != -100).sum())
        return total

    def watch(self, window, scored):
        """Measures, and clips head by head, the gradient of S after a window; the loss is the sum over `scored` targets."""
        self.squares.append(0.0)

        def hook(gradient):
            norms = gradient.square().sum((1, 2)).sqrt()
            self.squares[window] += norms.square().sum().item()
            limit = self.s.gradient.clip_state
            if limit is None:
                return gradient
            return torch.stack([g * min(1.0, limit * int(scored) / n) for g, n in zip(gradient, norms, strict=True)])

        for i in self.S:
            if self.S[i].requires_grad:
                self.S[i].register_hook(hook)
