"""The benchmark families, one module each; opened by name through ``cfaug.data.open_source``."""
