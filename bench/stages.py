"""Our sampling loop from plain to fast: each stage is the previous one plus its own change."""

STAGES = {"eager": "plain lines, float32 (TF32 in convolutions)", "bf16": "weights and activations in bf16",
          "channels_last": "convolutions in their own layout", "compile": "torch.compile of network and step",
          "kernels": "the fused norm and step", "time path": "the rows of all steps computed once",
          "sub-pixel": "nearest-up and convolution as one transposed convolution",
          "graph": "one step captured and replayed: all of --compile --dtype bf16"}
