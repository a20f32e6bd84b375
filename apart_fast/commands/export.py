"""`apart-fast export`: a network in a format that others open."""

from apart_fast.export.settings import ExportConfig
from apart_fast.export.write import export_network


def run(config: ExportConfig) -> None:
    """Write it, and say what was written, how it compares, and what is under which licence.

    Raises:
        UserError: see `apart_fast.export.write.export_network`.
    """
    stored, out, compared, words = export_network(config)
    print(f"{stored.file}: {stored.what}, epoch {stored.epoch}, {stored.description['name']}")
    if not stored.card:
        print("no card.json of these weights: the export comes without figures")
    ties = f", but for {compared.ties} on which two classes are as good as equal" if compared.ties else ""
    print(
        f"opened and compared on {compared.images:,} {words}: logits within {compared.difference:.1e}, "
        f"the same decisions{ties}"
    )
    print(f"{config.to}: {out} (weights under licence {config.licence}; --licence names another)")
