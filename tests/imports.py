"""The imports of processes that train, made once by the fork server of `tests.distributed`."""

import torch._dynamo
import torch.distributed

import sleeptrain.cli.training
import sleeptrain.execute.pipeline
import sleeptrain.train.loop
from sleep_data.patches.streaming_import import import_streaming
from sleeptrain.engine.patches.muon_import import import_muon_uncompiled
from sleeptrain.parallel.patches.deepspeed_logging import deepspeed_quiet
from sleeptrain.parallel.patches.megatron_warnings import import_megatron

__all__ = ["sleeptrain", "torch"]

with deepspeed_quiet():
    import_muon_uncompiled()
import_megatron()
import_streaming()
