"""What ``tlearn.export`` is made of: images read inside a graph, a writer for each format, the check of what it wrote.

Importing this package does not import TensorFlow.
"""
