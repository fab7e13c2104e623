"""Answers to the first assignment that must not pass; each costs the points of its own task."""

SEARCH = """
def search(network, pixels, ratio):
    generator, blend = MaskGenerator(tuple(pixels.shape[1:])), Perturbation(pixels[None], "fade-black")
    seeds = torch.ones(1, *generator.seed_shape)
    for _ in range(100):
        mask = generator(seeds.requires_grad_())
        reward = network.log_probabilities(blend(mask))[0, 0]
        energy = {energy}
        slope = torch.autograd.grad(energy, seeds)[0]
        seeds = (seeds - 0.05 * slope / slope.abs().max()).clamp(0, 1).detach()
    return generator(seeds)[0].detach()
"""
AREA = "10 * losses.area_loss(mask, ratio).sum() / mask.numel()"
BLOB = """
def search(network, pixels, ratio):
    mask = torch.zeros(pixels.shape[1:])
    high, wide = (round(n * ratio**0.5) for n in mask.shape[1:])
    top, left = (mask.shape[1] - high) // 2, (mask.shape[2] - wide) // 2
    mask[:, top : top + high, left : left + wide] = 1
    return mask
"""
FROZEN = """
def search(network, pixels, ratio):
    generator, blend = MaskGenerator(tuple(pixels.shape[1:])), Perturbation(pixels[None], "fade-black")
    seeds = torch.ones(1, 1, *generator.seed_shape[1:])
    for _ in range(100):
        mask = generator(seeds.requires_grad_().expand(1, *generator.seed_shape))
        reward = network.log_probabilities(blend(mask))[0, 0]
        energy = 10 * losses.area_loss(mask, ratio).sum() / mask.numel() - reward
        slope = torch.autograd.grad(energy, seeds)[0]
        seeds = (seeds - 0.05 * slope / slope.abs().max()).clamp(0, 1).detach()
    return generator(seeds.expand(1, *generator.seed_shape))[0].detach()
"""

WRONG = {
    "task1_blend": {
        "keeps what should go": "def blend(pixels, blurred, mask):\n    return (1 - mask) * pixels + mask * blurred",
        "cuts instead of blending": "def blend(pixels, blurred, mask):\n"
        "    return torch.where(mask > 0.5, pixels, blurred)",
        "one mask for all frames (hidden tests only)": "def blend(pixels, blurred, mask):\n"
        "    mask = mask[:1]\n    return mask * pixels + (1 - mask) * blurred",
        "changes its argument (hidden tests only)": "def blend(pixels, blurred, mask):\n"
        "    out = mask * pixels + (1 - mask) * blurred\n    pixels[:] = out\n    return out",
    },
    "task2_area_loss": {
        "a mean": "def area_loss(mask, ratio):\n    return losses.area_loss(mask[None], ratio)[0] / mask.numel()",
        "smallest first": "def area_loss(mask, ratio):\n    values = mask.flatten().sort().values\n"
        "    template = torch.zeros_like(values)\n    template[: round(ratio * len(values))] = 1\n"
        "    return ((values - template) ** 2).sum()",
        "the difference of the sizes": "def area_loss(mask, ratio):\n    return (mask.sum() - ratio * mask.numel()).abs()",
        "frame by frame (hidden tests only)": "def area_loss(mask, ratio):\n"
        "    if mask.numel() == 100 and mask.shape[0] == 2:\n"
        "        return losses.area_loss(mask[None], ratio)[0]\n"
        "    return sum(losses.area_loss(frame[None, None], ratio)[0] for frame in mask)",
    },
    "task3_template": {
        "of one frame": "def template(size, ratio):\n    count = size[1] * size[2]\n    ones = round(ratio * count)\n"
        "    return ones, max(ones, count - ones)",
        "all ones are the worst": "def template(size, ratio):\n    count = size[0] * size[1] * size[2]\n"
        "    ones = round(ratio * count)\n    return ones, count - ones",
        "twice too much (hidden tests only)": "def template(size, ratio):\n    count = size[0] * size[1] * size[2]\n"
        "    return round(ratio * count), count",
    },
    "task4_without_sort": {
        "without the k": "def area_loss_without_sort(mask, k):\n    values = mask.flatten()\n"
        "    return (values**2).sum() - 2 * values.topk(k).values.sum()",
        "of each frame": "def area_loss_without_sort(mask, k):\n"
        "    return (mask**2).sum() + k - 2 * mask.flatten(1).topk(min(k, mask[0].numel())).values.sum()",
        "sorts (hidden tests only)": "def area_loss_without_sort(mask, k):\n"
        "    values = mask.flatten().sort(descending=True).values\n    values[:k] -= 1\n    return (values**2).sum()",
    },
    "task5_gradient": {
        "half of it": "def area_gradient(mask, k):\n    chosen = torch.zeros(mask.numel())\n"
        "    chosen[mask.flatten().topk(k).indices] = 1\n    return mask - chosen.reshape(mask.shape)",
        "uphill": "def area_gradient(mask, k):\n    chosen = torch.zeros(mask.numel())\n"
        "    chosen[mask.flatten().topk(k).indices] = 1\n    return 2 * (chosen.reshape(mask.shape) - mask)",
        "of each frame": "def area_gradient(mask, k):\n    chosen = torch.zeros_like(mask).flatten(1)\n"
        "    for row, values in zip(chosen, mask.flatten(1)):\n        row[values.topk(k // 2).indices] = 1\n"
        "    return 2 * (mask - chosen.reshape(mask.shape))",
        "all above one half (hidden tests only)": "def area_gradient(mask, k):\n"
        "    return 2 * (mask - (mask > 0.5).float())",
    },
    "task7_search": {
        "all ones": "def search(network, pixels, ratio):\n    return torch.ones(pixels.shape[1:])",
        "a blob in the middle": BLOB,
        "the same mask in every frame": FROZEN,
        "without a reward": SEARCH.format(energy=AREA),
        "away from the class": SEARCH.format(energy=f"{AREA} + reward"),
        "always the window of the check (hidden tests only)": "def search(network, pixels, ratio):\n"
        "    mask = checks.moving_window((6, 42, 42), (28, 28), (0, -4)).float()\n"
        "    mask[:, 30:34, :] = 1\n    return mask",
    },
}
