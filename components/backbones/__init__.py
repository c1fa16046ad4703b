"""Flow models behind one small interface, adapters by name on one shared base, layer-wise concept embeddings."""
