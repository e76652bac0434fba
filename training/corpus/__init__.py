"""
Corpus: a whole corpus to units, features or packed audio, shard by shard. A shard is a fixed number of clips in the
order of the source; what is in it depends on its clips alone, not on processes, nor on where a run was killed.

- `reading`: the clips of any source in their order, in shards
- `extraction`: what makes units or features of clips: batches by length, long clips in pieces
- `tables`: a shard in each format
- `packing`: clips as FLAC or Opus, in Parquet or tar
- `output`: the folder that is written: what it holds, which shards are done
- `shards`: the loop over them
"""
