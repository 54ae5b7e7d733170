"""What can be said of PyTorch's CUDA build on any machine, with or without a GPU."""

from __future__ import annotations

import pytest
import torch

import teraio._C as _C


@pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch is built without CUDA")
def test_the_cuda_allocator_takes_our_callback() -> None:
    assert _C.install_free_memory_callback()


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch is built with CUDA")
def test_without_cuda_there_is_no_allocator_to_hook() -> None:
    assert not _C.install_free_memory_callback()
