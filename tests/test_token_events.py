"""Events of tokens that become one lose nothing, whatever fields they come to have."""

from google.protobuf.descriptor import FieldDescriptor
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm.token_events import extend


def filled(mark: int) -> pb.Tokens:
    """One with something in every field."""
    tokens = pb.Tokens()
    for field in pb.Tokens.DESCRIPTOR.fields:
        values = getattr(tokens, field.name)
        if field.name == "duration":
            values.FromSeconds(mark)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            values.add()
        elif field.is_repeated:
            values.append(mark)
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(tokens, field.name, str(mark))
        else:
            setattr(tokens, field.name, mark)
    return tokens


def test_nothing_is_lost() -> None:
    tokens = filled(1)
    extend(tokens, filled(2))
    for field in pb.Tokens.DESCRIPTOR.fields:
        found = getattr(tokens, field.name)
        if field.name == "duration":
            assert found.ToSeconds() == 3
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            assert len(found) == 2, field.name
        elif field.is_repeated:
            assert list(found) == [1, 2], field.name
        elif field.type == FieldDescriptor.TYPE_STRING:
            assert found == "12", field.name
        else:
            assert field.name == "first_index", f"{field.name}: say what becomes of it"
            assert found == 1
