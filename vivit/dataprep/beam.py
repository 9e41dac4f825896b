"""prepare on a cluster, by Apache Beam: pip install 'vivit[beam]'.

The workers do the same steps on the same files: they need the data root and OUT on a shared disk.
"""

from collections.abc import Callable, Iterable, Sequence

from vivit.dataprep.staging import Plan


def run_on_beam(options: Sequence[str] = ()) -> Callable[..., None]:
    """Returns a `run` for prepare_manifest. options: Beam's, such as --runner=DirectRunner."""
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options import pipeline_options  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("--beam needs Apache Beam; run: pip install 'vivit[beam]'") from error

    def run(
        plan: Plan, step: Callable[[Plan, int], None], numbers: Iterable[int], unit: str
    ) -> None:
        with beam.Pipeline(options=pipeline_options.PipelineOptions(list(options))) as pipeline:
            _ = (
                pipeline
                | f"number each {unit}" >> beam.Create(list(numbers))
                | "spread" >> beam.Reshuffle()
                | f"do each {unit}" >> beam.Map(lambda i: step(plan, i))
            )

    return run
