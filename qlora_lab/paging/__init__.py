"""Notebook 04: AdamW whose state lies in pages, on the device, in host memory or in a file.

Read `adamw` (the arithmetic, operation by operation), then `paged_adamw` (the optimizer). `layout` says where in the
pages a parameter's state lies and updates it there, `store` which pages are on which tier, `eight_bit_state` how
moments fit in a byte. `tiers` moves the bytes and can be skipped.
"""

from qlora_lab.paging.paged_adamw import PagedAdamW
from qlora_lab.paging.store import PageEvent
from qlora_lab.paging.tiers.page_file import PageFileError

__all__ = ["PageEvent", "PageFileError", "PagedAdamW"]
