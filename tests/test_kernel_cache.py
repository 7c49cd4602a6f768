"""Machine code that is kept on disk, by several processes at once."""

import time
from concurrent.futures import ThreadPoolExecutor

from numba.core.caching import IndexDataCacheFile

from wkernels.cpu import jit


def test_processes_that_compile_one_kernel_at_once_keep_their_code_apart(tmp_path, monkeypatch):
    """Threads with files of their own lock each other out as processes do."""
    save_index = IndexDataCacheFile._save_index

    def slowly(cache, overloads):
        time.sleep(0.2)  # the other has looked for a free name by now
        save_index(cache, overloads)

    monkeypatch.setattr(IndexDataCacheFile, "_save_index", slowly)
    caches = [IndexDataCacheFile(str(tmp_path), "kernel", "stamp") for _ in range(3)]
    for cache in caches:
        jit.one_at_a_time(cache)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda k: caches[k].save(f"types {k}", f"code {k}"), range(3)))
    found = IndexDataCacheFile(str(tmp_path), "kernel", "stamp")
    assert [found.load(f"types {k}") for k in range(3)] == [f"code {k}" for k in range(3)]
