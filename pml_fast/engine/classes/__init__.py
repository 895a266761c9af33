"""The class engine: a batch against the weights of many classes, streamed over blocks of classes."""
