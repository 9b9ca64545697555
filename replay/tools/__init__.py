"""What a person runs beside a run: a service alone, counts, verification, and Parquet in and out."""
