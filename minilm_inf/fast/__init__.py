"""The same numbers as attention.attend in O(n): in reading order chunk, band, (blocks, middle,)
chunked, cache, one_token, reading.

Every room says which keys it leaves out, and why their weight in the definition is 0. The
words:

    window          the last n_local keys that a query sees
    starting keys   the first n_global of a text, once they have left the window
    home            where all starting keys are kept: at -C, the ceiling away from position 0
    origin          the position of a text's first token; padding stands before it
    chunk           queries that are read together
    band            consecutive queries, each with its window
    block           some queries of a band, which share one batched product
    spare           columns of a block before its window, the starting keys' among them
    stretch         queries of a long text for which the window of placed keys moves on at once
    ring            the slots of a cache, where the newest token takes the place of the oldest
    slot            token p of a text stands in slot p mod n_local
    middle          what has left the window and is no starting key
    to reach        to bring back the top_k best keys of the middle
    to settle       to give the starting keys their room after the ring
"""
