"""Write a calibration file with plain torch hooks: ``collect(model, run)`` for any ``torch.nn.Module``.

The file's format is described in docs/calibration-file.md; give it to a recipe as ``source.calibration``.
"""

import torch
from safetensors.torch import save_file

SAMPLED = 1024  # tokens that are kept of each layer's input, for rounding: gptq; the last quarter of them is held out


def collect(model, run, path):
    """run: calls the model on representative inputs. Layers are named as in ``model.state_dict()``."""
    sums, kept = {}, {}

    def hook(name):
        def see(module, args):
            x = args[0].detach().reshape(-1, args[0].shape[-1]).float()
            before = sums.get(name, (0, 0.0, 0.0, torch.zeros(())))
            most = torch.maximum(before[3], x.abs().amax().cpu())
            sums[name] = (before[0] + len(x), before[1] + x.sum(0).cpu(), before[2] + x.square().sum(0).cpu(), most)
            few = x[torch.randperm(len(x))[: SAMPLED // 8]].bfloat16().cpu()
            kept[name] = torch.cat([kept[name], few])[-SAMPLED:] if name in kept else few

        return see

    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    hooks = [module.register_forward_pre_hook(hook(name)) for name, module in linear.items()]
    with torch.no_grad():
        run(model)
    for handle in hooks:
        handle.remove()
    tensors = {}
    for name, (count, total, squares, most) in sums.items():
        tensors |= {f"{name}.count": torch.tensor(count), f"{name}.absmax": most, f"{name}.tokens": kept[name]}
        tensors |= {f"{name}.mean": total / count, f"{name}.mean_square": squares / count}
    save_file(tensors, path, {"format": "calibration", "version": "1"})
