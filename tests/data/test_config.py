"""Problems of the section `data:` that are found without opening any data."""

from sleeptrain.data import Data, Source


def test_problems_name_the_field():
    def fields(data):
        return [problem.field for problem in data.problems()]

    assert fields(Data([Source("a"), Source("b")])) == []
    assert fields(Data()) == ["sources"]
    assert fields(Data([Source("a"), Source("a")], workers=-1)) == ["workers", "sources.1.path"]
    assert fields(Data([Source("a", 1.0), Source("b")])) == ["sources"]
    assert fields(Data([Source("a", 0.0)])) == ["sources.0.proportion"]
    assert fields(Data([Source("s3://a")])) == ["cache"]
