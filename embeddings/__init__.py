"""What training and serving must agree on: schema, ids, features, models, index and bundle.

Nothing here knows how a model is trained or how an answer is served; `import embeddings` pulls in no Ray and no
web framework.
"""
