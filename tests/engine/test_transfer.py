import numpy as np
import torch

from probing.engine.transfer import Download, upload

CPU = torch.device("cpu")


def test_numbers_arrive_as_they_were_in_one_copy():
    arrays = [np.array([3, 1, 2]), np.array([], dtype=np.int64), np.array([2**31 - 1])]
    found = upload(arrays, CPU)
    assert [part.tolist() for part in found] == [[3, 1, 2], [], [2**31 - 1]]
    assert {part.dtype for part in found} == {torch.int32}
    assert len({part.untyped_storage().data_ptr() for part in found}) == 1


def test_what_is_on_the_host_is_handed_out_as_it_is():
    values = [torch.ones(2), torch.zeros(3, 1)]
    assert all(found is value for found, value in zip(Download(values).wait(), values, strict=True))
