"""
Targets: what is predicted, the heart of the method (sections 3 to 5).

- `targets`: posteriors of a mixture over MFCC (phase 1), then of one over the EMA encoder's features (phase 2)
- `transitions`: what follows what, estimated on audio, for targets that are given the whole clip
- `whitening`: principal components of the encoder's features, where the mixture of phase 2 is over these
- `layer_choice`: which layer, by effective rank
- `sampling`: the frames that a mixture is fitted to
"""
