"""The same numbers as attention.attend in O(n): in reading order band, chunk, chunked; then
cache and reading, for texts that go on; middle, for top-k; and kernel, for a GPU.

Every room says which keys it leaves out, and why their weight would be 0. The words:

    window          the last n_local keys that a query sees
    starting keys   the first n_global of a text, once they have left the window
    home            where starting keys are kept: at -C, the ceiling away from position 0
    band            consecutive queries, each with its window
    block           some queries of a band, which share one batched product
    spare           columns of a block before its window, the starting keys' among them
    stretch         queries of a long text for which the window of placed keys moves on at once
    chunk           any queries that are read together
    ring            the slots of a cache, where the newest token takes the place of the oldest
    slot            token p of a text stands in slot p mod n_local
    padding         what stands before a shorter row's text, and is left out
    middle          what has left the window and is no starting key
    to reach        to bring back the top_k best keys of the middle
"""
