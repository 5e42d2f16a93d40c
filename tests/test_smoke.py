import assay


def test_public_names_exist():
    for name in assay.__all__:
        assert hasattr(assay, name)
