"""Our plugins under the kit that authors of others use."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from converter_core.testing import (
    ContainerConformance,
    DeviceConformance,
    LayoutWriterConformance,
    ModelConformance,
    QuantizerConformance,
    TargetConformance,
)
from converter_core.testing.containers import tensor_of
from converter_plugins.containers.safetensors import Safetensors
from converter_plugins.containers.torch_zip import TorchZip
from converter_plugins.devices.cpu import Cpu
from converter_plugins.devices.cuda import Cuda
from converter_plugins.devices.hygon_dcu import HygonDcu
from converter_plugins.layouts.by_block import ByBlock
from converter_plugins.layouts.chunked import Chunked
from converter_plugins.layouts.single_file import SingleFile
from converter_plugins.models.flux2_dit import Flux2Dit
from converter_plugins.models.hunyuan_dit import HunyuanDit
from converter_plugins.models.ltx2_dit import Ltx2Dit
from converter_plugins.models.qwen_image_dit import QwenImageDit
from converter_plugins.models.wan_clip import WanClip
from converter_plugins.models.wan_dit import WanDit
from converter_plugins.models.wan_t5 import WanT5
from converter_plugins.models.z_image_dit import ZImageDit
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.gguf_blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from converter_plugins.quantizers.gguf_k import Q2_K, Q4_K, Q6_K
from converter_plugins.quantizers.int8 import Int8
from converter_plugins.quantizers.mxfp4 import Mxfp4
from converter_plugins.quantizers.mxfp6 import Mxfp6
from converter_plugins.quantizers.mxfp8 import Mxfp8
from converter_plugins.quantizers.nvfp4 import Nvfp4
from converter_plugins.targets.comfyui import ComfyUI
from converter_plugins.targets.compressed_tensors import CompressedTensors
from converter_plugins.targets.diffusers import Diffusers
from converter_plugins.targets.lightx2v import LightX2V
from converter_plugins.targets.plain import Plain
from converter_plugins.targets.vllm_omni import VllmOmni


class TestInt8(QuantizerConformance):
    quantizer = Int8()


class TestInt8OfTheWholeWeight(QuantizerConformance):
    quantizer = Int8(per_channel=False)


class TestInt8WithZeroPoint(QuantizerConformance):
    quantizer = Int8(symmetric=False, scale_rule="mse")


class TestInt8OfLightX2V(QuantizerConformance):
    quantizer = Int8(numerics="lightx2v")
    smallest = 1e-3  # its scales are no smaller than 1e-8


class TestFp8(QuantizerConformance):
    quantizer = Fp8()


class TestFp8OfTheWholeWeight(QuantizerConformance):
    quantizer = Fp8(per_channel=False, scale_dtype="float32")


class TestMxfp4(QuantizerConformance):
    quantizer = Mxfp4()


class TestMxfp6(QuantizerConformance):
    quantizer = Mxfp6()


class TestMxfp8(QuantizerConformance):
    quantizer = Mxfp8()


class TestNvfp4(QuantizerConformance):
    quantizer = Nvfp4()


class TestQ8_0(QuantizerConformance):
    quantizer = Q8_0()
    smallest = 0.01  # the scale is fp16


class TestQ5_0(QuantizerConformance):
    quantizer = Q5_0()
    smallest = 0.01  # the scale is fp16


class TestQ4_1(QuantizerConformance):
    quantizer = Q4_1()
    smallest = 0.01  # the scale is fp16


class TestQ6_K(QuantizerConformance):
    quantizer = Q6_K()
    smallest = 0.01  # the scale is fp16
    shapes = ((7, 256), (1, 512), (130, 256))


class TestQ4_K(QuantizerConformance):
    quantizer = Q4_K()
    smallest = 0.01  # the scale is fp16
    shapes = ((7, 256), (1, 512), (130, 256))


class TestQ2_K(QuantizerConformance):
    quantizer = Q2_K()
    smallest = 0.01  # the scale is fp16
    shapes = ((7, 256), (1, 512))


class TestLightX2V(TargetConformance):
    target = LightX2V()
    quantizers = (Int8(), Fp8(), Fp8(per_channel=False), Mxfp4(), Mxfp6(), Mxfp8(), Nvfp4())
    shapes = ((7, 128), (1, 128), (130, 256))
    refused = (Int8(symmetric=False), Int8(scale_dtype="float32"))


class TestComfyUI(TargetConformance):
    target = ComfyUI()
    quantizers = (
        Int8(),
        Int8(scale_dtype="float32"),
        Int8(per_channel=False),
        Fp8(per_channel=False, scale_dtype="float32"),
        Nvfp4(),
        Mxfp8(),
    )
    refused = (Fp8(), Int8(symmetric=False), Mxfp4(), Mxfp6())


class TestComfyUIOfOldVersions(TargetConformance):
    target = ComfyUI(style="legacy")
    quantizers = (Fp8(per_channel=False),)
    refused = (Int8(), Nvfp4())


class TestDiffusers(TargetConformance):
    target = Diffusers()
    quantizers = (Int8(), Fp8())
    refused = (Int8(symmetric=False), Nvfp4(), Mxfp4())


class TestDiffusersWithTorchao(TargetConformance):
    target = Diffusers("torchao")
    quantizers = (Int8(scale_dtype="float32"), Fp8())


class TestDiffusersWithTorchaoAndDynamicActivations(TargetConformance):
    target = Diffusers("torchao", "dynamic")
    quantizers = (Int8(scale_dtype="float32"),)
    refused = (Fp8(),)


class TestDiffusersWithBfl(TargetConformance):
    target = Diffusers("bfl")
    quantizers = (Fp8(),)
    refused = (Int8(),)


class TestVllmOmni(TargetConformance):
    target = VllmOmni()
    quantizers = (Int8(),)
    refused = (Int8(symmetric=False), Fp8(), Nvfp4())


class TestCompressedTensors(TargetConformance):
    target = CompressedTensors()
    quantizers = (Int8(), Fp8(), Fp8(per_channel=False), Nvfp4(), Mxfp4(), Mxfp8())
    refused = (Int8(symmetric=False), Mxfp6())


class TestPlain(TargetConformance):
    target = Plain()
    quantizers = (Int8(symmetric=False), Fp8(per_channel=False), Mxfp4(), Nvfp4(), Q4_0(), Q5_1())


class TestSingleFile(LayoutWriterConformance):
    layout = SingleFile()


class TestByBlock(LayoutWriterConformance):
    layout = ByBlock()


class TestChunkedByBytes(LayoutWriterConformance):
    layout = Chunked("3KiB")


class TestChunkedByCount(LayoutWriterConformance):
    layout = Chunked(7)


class TestWanDit(ModelConformance):
    model = WanDit()
    key_formats = ("original", "diffusers")
    other_modules = ("audio_injector", "face_adapter")


class TestSafetensors(ContainerConformance):
    container = Safetensors()


class TestSafetensorsOfItsOwnLibrary(ContainerConformance):
    container = Safetensors()

    def write(self, path: Path, tensors) -> None:
        made = {key: tensor_of(spec, data) for key, (spec, data) in tensors.items()}
        safetensors.torch.save_file(made, path, dict(self.metadata))

    def specs(self):
        return {key: spec for key, spec in super().specs().items() if key not in HANDLED_AS_OTHERS}


class TestTorchZip(ContainerConformance):
    container = TorchZip()

    def write(self, path: Path, tensors) -> None:
        torch.save({key: tensor_of(spec, data) for key, (spec, data) in tensors.items()}, path)

    def specs(self):
        return {key: spec for key, spec in super().specs().items() if key not in HANDLED_AS_OTHERS}


HANDLED_AS_OTHERS = {"t.F8_E8M0", "t.U16", "t.U32", "t.U64"}
"""Torch tensors of these dtypes are those of others here."""


class TestWanT5(ModelConformance):
    model = WanT5()
    key_formats = ("original", "transformers")


class TestWanClip(ModelConformance):
    model = WanClip()


class TestQwenImageDit(ModelConformance):
    model = QwenImageDit()
    key_formats = ("original", "diffusers")


class TestZImageDit(ModelConformance):
    model = ZImageDit()
    key_formats = ("original", "diffusers")


class TestHunyuanDit(ModelConformance):
    model = HunyuanDit()  # its fused projections have no name in diffusers


class TestFlux2Dit(ModelConformance):
    model = Flux2Dit()
    key_formats = ("original", "diffusers")


class TestLtx2Dit(ModelConformance):
    model = Ltx2Dit()
    key_formats = ("original", "diffusers")


class TestCpu(DeviceConformance):
    device = Cpu()


class TestCuda(DeviceConformance):
    device = Cuda()


class TestHygonDcu(DeviceConformance):
    device = HygonDcu()
