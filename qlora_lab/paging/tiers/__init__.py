"""The engine of `paging`: where pages are kept and how they get there.

`slots` are places in memory, `page_file` is the file on disk, `copier` moves a page from one to the other meanwhile.
"""
