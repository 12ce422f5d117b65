"""sleeptrain as a library: a model, its loss, a training step, generation, and a trained run.

    python docs/library.py [RUN]

RUN is the folder of a trained run, or a checkpoint in one.
"""

import sys

import torch

from sleeptrain import LanguageModel, Loop, Sleep, SleepSession, load_recipe, open_trained


def train_and_generate() -> None:
    """A small model learns a text. Its windows have 22 bytes; a second pass over each is made before it is evicted."""
    sizes = ["model.layers=GA", "model.width=32", "model.mlp.hidden=64", "model.vocab=256"]
    model = LanguageModel(load_recipe("text-small", sizes).value.model, seed=0)
    sleep = Sleep(window=22, passes=2, loop=Loop(trigger="every"))  # every window but the last one sleeps

    text = torch.tensor([list(b"the fast weights remember what was evicted. " * 2)])
    tokens, targets = text[:, :-1], text[:, 1:]
    logits = model(tokens, sleep=sleep)
    print("logits", tuple(logits.shape))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(20):
        loss = model(tokens, targets, sleep=sleep)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            print(f"step {step + 1}  loss {loss.item():.3f}")

    session = SleepSession(model, sleep)
    session.feed(tokens[:, :20])
    print("continued:", bytes(int(token) for token in session.generate(24)).decode(errors="replace"))


def read_a_run(path: str) -> None:
    """The model of a run reads some tokens; its state can be kept and continued later."""
    trained = open_trained(path)
    session = SleepSession(trained.model, trained.recipe.sleep)
    logits = session.feed(torch.zeros(1, 10, dtype=torch.long))
    print(
        f"{path}, step {trained.step}: next token {int(logits[0, -1].argmax())}, state of {session.state().nbytes():,} bytes"
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    train_and_generate()
    for run in sys.argv[1:]:
        read_a_run(run)
