"""
Data: from a name on the command line to a batch. A new kind of source goes into `sources`, a codec is mended in
`waveforms`, other masks go beside those of `masking`, a faster loader begins in `loader`.

- `sources`: what a user names, opened as a source: folders, manifests, Parquet, archives, the Hub
- `folders`, `metadata`: folders of audio, and the lists of files and labels in them
- `manifest`, `row_index`: JSONL with a clip a line, and where its lines begin
- `archives`: tar archives, read from front to back
- `fetching`: audio behind a URL
- `clips`: what a clip is
- `waveforms`: any audio file to 16 kHz mono, or what is wrong with it
- `plain_wav`: WAV files of 16-bit samples, which need no decoder
- `unsized`: files that do not say how long they are
- `seeking`: where decoding begins, for a piece to be the same as in the whole
- `bad_audio`: how much may be unusable before a run ends
- `order`, `permutation`: which clip comes when, for each reader, and where a resumed run goes on
- `identity`: whether data are the same as before
- `batches`: clips of similar length, cut, padded and masked
- `masking`: which frames are hidden
- `augmentation`: what is added to the encoder's input
- `noise`: recordings of noise for that; `coloured_noise`: noise that needs none
- `arguments`: the settings of pretraining's data
- `loader`: all of the above behind one loader
- `workers`: the processes that read, and what becomes of one that dies; `shared_memory`: how they send batches
- `labelled`: clips with labels, for fine-tuning and evaluation
- `hold_out`: which clips are kept from training
"""
