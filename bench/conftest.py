"""Every benchmark begins alike: nothing compiled before, for Dynamo gives up on a function after eight shapes."""

import pytest
import torch

from bench.measure import prepare


@pytest.fixture(autouse=True)
def begin() -> None:
    torch.compiler.reset()
    prepare()
