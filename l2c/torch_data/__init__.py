"""L2C files in training pipelines: datasets for PyTorch's `DataLoader`, and a decoder for WebDataset.

    from torch.utils.data import DataLoader
    from l2c.torch_data import L2CDataset, RandomResizedCrop, DecodingLoader, collate

    data = L2CDataset("photos", labels="folder", region=RandomResizedCrop(), scale="auto", resize=224, seed=1)
    loader = DataLoader(data, batch_size=64, shuffle=True, num_workers=8)      # decoded in the workers, on the CPU

    data = L2CDataset("photos", labels="folder", output="bytes")               # workers read, and nothing more
    loader = DataLoader(data, batch_size=64, shuffle=True, num_workers=2, collate_fn=collate)
    for pictures, labels in DecodingLoader(loader, device="cuda"):             # decoded here, in batches
        ...

    wds.WebDataset("train-{0000..0099}.tar").decode(webdataset_decoder(scale=2), handler=skip_damaged)

Pictures are uint8 [3, H, W], and exactly what `l2c.decode` gives for the same region and scale. Values go down this
list:

    dataset, shards     files -> samples: in any order, or as they lie in tar shards; `webdataset_decoder`
    seeds               the random numbers of a sample, however many workers there are
    views               which region of a picture, and how small
    decoding            samples -> pixels, and what to do about files that are damaged
    codecs              the codec of this process, made when it is needed
    loader              batches that hold bytes, and their decoding in the main process

Workers may be started by `fork`, `spawn` or `forkserver`; nothing that a dataset holds ties it to a process.
"""

from l2c.torch_data.dataset import L2CDataset
from l2c.torch_data.decoding import Coded, Damaged
from l2c.torch_data.loader import CodedBatch, DecodingLoader, collate, decode_batch
from l2c.torch_data.shards import L2CShards, WebDatasetDecoder, skip_damaged, webdataset_decoder
from l2c.torch_data.views import CenterCrop, RandomCrop, RandomResizedCrop, RegionChooser

__all__ = [
    "CenterCrop",
    "Coded",
    "CodedBatch",
    "Damaged",
    "DecodingLoader",
    "L2CDataset",
    "L2CShards",
    "RandomCrop",
    "RandomResizedCrop",
    "RegionChooser",
    "WebDatasetDecoder",
    "collate",
    "decode_batch",
    "skip_damaged",
    "webdataset_decoder",
]
