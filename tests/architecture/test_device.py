"""What differs between CPU and CUDA stands in one module: no other one names CUDA's calls, switches or variables."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ray_jobs", "tasks", "evaluation", "deepspeed_configs", "fulltune")
HOME = Path("fulltune/device.py")
# calls, dtype- and kernel switches, backends, and the environment that CUDA, NCCL and torch's allocator read
CUDA = re.compile(
    r"torch\.cuda|torch\.backends|\.cuda\(|\.pin_memory\(|set_float32_matmul_precision|use_deterministic_algorithms"
    r"|['\"](cuda(:\d+)?|nccl|flash_attention_\d)['\"]|CUDA_VISIBLE_DEVICES|CUBLAS_|NCCL_[A-Z]|ALLOC_CONF"
)


def findings(text: str) -> list[str]:
    """Lines of code, without comments and docstrings, that name CUDA."""
    kept = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        prose = token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.count('"""') == 2)
        if not prose and CUDA.search(token.string):
            kept.append(f"{token.start[0]}: {token.line.strip()}")
    # names with dots are several tokens
    code = [line for line in text.splitlines() if CUDA.search(line.partition("#")[0]) and '"""' not in line]
    return kept + [line.strip() for line in code if re.search(r"torch\.(cuda|backends)|\.(cuda|pin_memory)\(", line)]


def test_cuda_is_named_in_one_module_only() -> None:
    modules = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    assert len(modules) > 100
    elsewhere = {
        str(file.relative_to(ROOT)): found
        for file in modules
        if file.relative_to(ROOT) != HOME and (found := findings(file.read_text()))
    }
    assert elsewhere == {}


def test_the_module_itself_is_found() -> None:
    assert len(findings((ROOT / HOME).read_text())) > 20


@pytest.mark.parametrize(
    "planted",
    [
        "torch.cuda.synchronize()",
        "tensor.cuda()",
        "batch.pin_memory()",
        "torch.device('cuda')",
        'model.to("cuda:0")',
        'backend = "nccl"',
        'os.environ["NCCL_DEBUG"] = "INFO"',
        'env = {"PYTORCH_CUDA_ALLOC_CONF": "x"}',
        "torch.backends.cuda.matmul.allow_tf32 = True",
    ],
)
def test_a_planted_line_is_found(planted: str) -> None:
    assert findings(f'"""Prose may say torch.cuda."""\n# and "nccl"\n{planted}\n')
    assert not findings('"""Prose may say torch.cuda."""\n# and "nccl"\n')
