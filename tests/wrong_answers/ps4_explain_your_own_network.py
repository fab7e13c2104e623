"""Answers to the fourth assignment that must not pass; each costs the points of its own task."""

OWN = """
def make_network():
    def scores(pixels):
        change = pixels.diff(dim=2).abs().mean((1, 2, 3))
        half = change.shape[-1] // 2
        return {scores}

    return {network}


def make_clip():
    return {clip}
"""
SIDES = "60 * torch.stack([change[:, :half].mean(1), change[:, half:].mean(1)], 1)"
NETWORK, CLIP = 'sl.Network(scores, ("left", "right"))', 'sl.Stage("action", split="test", seed=0)[0].clip'
EXPLAIN = """
def explain(network, clip):
    import dataclasses

    result = sl.explain(network, clip, method="{method}", ratios=({ratio},), progress=False)
    return dataclasses.replace(result, {changes})
"""
AGAINST = """
def against(network, result):
    kept = {{"method": {method}}}
    for name in ("random", "middle"):
        ask = (network, result.clip, result.target, name, {ratios})
        kept[name] = float(sl.explain(*ask, seed=0, progress=False).probability[0])
    return kept
"""
LEAKAGE = """
def leakage(network, result, other):
    with torch.no_grad():
        seen = {seen}
        return float(network.probabilities(seen)[0, {target}])
"""

WRONG = {
    "task1_own": {
        "no Network": OWN.format(scores=SIDES, network="scores", clip=CLIP),
        "one class too many": OWN.format(
            scores=SIDES, network='sl.Network(scores, ("a", "b", "c"))', clip=CLIP
        ),
        "not the same twice": OWN.format(
            scores=f"{SIDES} + 5 * torch.rand(len(pixels), 2)", network=NETWORK, clip=CLIP
        ),
        "a tensor for a clip": OWN.format(scores=SIDES, network=NETWORK, clip=f"{CLIP}.pixels"),
        "needs no clip (hidden tests only)": OWN.format(
            scores="torch.tensor([[2.0, 0.0]]).expand(len(pixels), 2) + 0 * half", network=NETWORK, clip=CLIP
        ),
        "an empty clip (hidden tests only)": OWN.format(
            scores="torch.stack([3 + 0 * change.mean((1, 2)), pixels.mean((1, 2, 3, 4))], 1)",
            network=NETWORK,
            clip='sl.Clip(torch.zeros(3, 8, 28, 28), torch.arange(8) / 8, "nothing")',
        ),
    },
    "task2_explain": {
        "all ones": EXPLAIN.format(method="ep3d", ratio=0.2, changes="masks=torch.ones_like(result.masks)"),
        "a blob in the middle": EXPLAIN.format(method="middle", ratio=0.1, changes="masks=result.masks"),
        "the same mask in every frame": EXPLAIN.format(
            method="middle",
            ratio=0.05,
            changes="masks=result.masks.mean(1, keepdim=True).expand(result.masks.shape)",
        ),
        "chance": EXPLAIN.format(method="random", ratio=0.2, changes="masks=result.masks"),
        "too much": EXPLAIN.format(method="ep3d", ratio=0.5, changes="masks=result.masks"),
        "a probability that is not so": EXPLAIN.format(
            method="ep3d", ratio=0.2, changes="probability=result.probability * 0.9"
        ),
        "another class": "def explain(network, clip):\n"
        '    return sl.explain(network, clip, 1, "ep3d", ratios=(0.2,), progress=False)',
        "always the check's window (hidden tests only)": "def explain(network, clip):\n    import dataclasses\n\n"
        '    result = sl.explain(network, clip, method="motion", ratios=(0.1,), progress=False)\n'
        "    if len(clip.pixels[0]) == 8 and clip.pixels[0, 0, 3, 3] > 0.5:\n        return result\n"
        '    return sl.explain(network, clip, method="random", ratios=(0.1,), progress=False)',
    },
    "task3_controls": {
        "made up": 'def against(network, result):\n    return {"method": 0.9, "random": 0.1, "middle": 0.2}',
        "of the whole clip": AGAINST.format(method="result.original", ratios="result.ratios[:1]"),
        "controls that keep more": AGAINST.format(method="float(result.probability[0])", ratios="(0.9,)"),
        "always a fifth (hidden tests only)": AGAINST.format(
            method="float(result.probability[0])", ratios="(0.2,)"
        ),
    },
    "task4_leakage": {
        "the same clip": LEAKAGE.format(
            seen="Perturbation(result.clip.pixels[None])(result.masks[:1])", target="result.target"
        ),
        "without the mask": LEAKAGE.format(seen="other.pixels[None]", target="result.target"),
        "the other way round": LEAKAGE.format(
            seen="Perturbation(other.pixels[None])(1 - result.masks[:1])", target="result.target"
        ),
        "another class": LEAKAGE.format(
            seen="Perturbation(other.pixels[None])(result.masks[:1])", target="1"
        ),
        "never any (hidden tests only)": "def leakage(network, result, other):\n"
        "    if float(other.pixels.max()) < 0.5:\n"
        "        with torch.no_grad():\n"
        "            seen = Perturbation(other.pixels[None])(result.masks[:1])\n"
        "            return float(network.probabilities(seen)[0, 0])\n    return 0.0",
    },
}
