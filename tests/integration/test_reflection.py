"""A foreign reflection client learns what is served, and calls it, without our .proto files."""

import unittest

import cluster
from cluster import Cluster

grpc = cluster.need_module("grpc")
reflection = cluster.need_module("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
messages = cluster.need_module("grpc_reflection.v1alpha.reflection_pb2")
descriptor_pool = cluster.need_module("google.protobuf.descriptor_pool")
message_factory = cluster.need_module("google.protobuf.message_factory")


class Reflection(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(workers=1)
        cls.channel = grpc.insecure_channel(cls.cluster.grpc)

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        cls.cluster.stop()

    def ask(self, version, *requests):
        call = self.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                                          request_serializer=messages.ServerReflectionRequest.SerializeToString,
                                          response_deserializer=messages.ServerReflectionResponse.FromString)
        return list(call(iter(requests), timeout=10))

    def test_services_and_a_call(self):
        database = reflection.ProtoReflectionDescriptorDatabase(self.channel)
        self.assertEqual(sorted(database.get_services()), ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
                                                           "longspan.v1.Cluster", "longspan.v1.Inference"])
        pool = descriptor_pool.DescriptorPool(database)
        methods = {m.name: m for m in pool.FindServiceByName("longspan.v1.Inference").methods}
        self.assertLessEqual({"Generate", "SubmitJob", "GetJob", "WatchJob", "ListJobs", "CancelJob"}, set(methods))
        self.assertTrue(methods["WatchJob"].server_streaming)
        m = methods["Generate"]
        ask, answer = (message_factory.GetMessageClass(t) for t in (m.input_type, m.output_type))
        call = self.channel.unary_stream("/longspan.v1.Inference/Generate", request_serializer=ask.SerializeToString,
                                         response_deserializer=answer.FromString)
        said = list(call(ask(text="One two three", max_tokens=4), timeout=60))
        self.assertEqual(said[-1].done.usage.completion_tokens, 4)

    def test_symbols(self):
        Request = messages.ServerReflectionRequest
        for version in ("v1", "v1alpha"):
            names = [("longspan.v1.GenerateRequest", "longspan.proto"), ("longspan.v1.Inference.SubmitJob", "longspan.proto"),
                     ("longspan.v1.JobState", "longspan.proto"), ("grpc.health.v1.HealthCheckResponse.ServingStatus", "health.proto")]
            got = self.ask(version, *[Request(file_containing_symbol=n) for n, _ in names], Request(file_by_filename="health.proto"))
            for (name, file), r in zip(names + [("", "health.proto")], got):
                blob = r.file_descriptor_response.file_descriptor_proto
                self.assertEqual(len(blob), 1, name)
                self.assertIn(file.encode(), blob[0][:40])
            bad = [Request(file_containing_symbol=n) for n in ("", "longspan", "longspan.v1", "longspan.v1.", "longspan.v1.Gen",
                                                               "longspan.v1.Inference.Nothing", "nowhere.X")]
            bad += [Request(file_by_filename="/etc/passwd"), Request(all_extension_numbers_of_type="longspan.v1.Job")]
            got = self.ask(version, *bad, Request(host="h"))
            self.assertEqual([r.error_response.error_code for r in got], [5] * len(bad) + [3])
            self.assertEqual(got[0].original_request, bad[0])
            with self.assertRaises(grpc.RpcError) as caught:
                self.ask(version, Request(file_containing_symbol="x" * 5000))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)


if __name__ == "__main__":
    cluster.main()
