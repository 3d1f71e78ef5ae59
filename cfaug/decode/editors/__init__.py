"""Image mechanisms that are pretrained pipelines of diffusers, asked in words.

words        do() as a prompt: templates, words of values, named ranges
backends     which pipeline classes there are, what each can do (as data), and one call of each kind
open_pipeline  a pipeline on disk: what is refused, its size, its digest, loading
adapters     low-rank adapters: of the user's data set, and of a single image (doubly abductive)
passes       an edit layer by layer, each pasted into what came before
decoder      PretrainedDecoder
"""
