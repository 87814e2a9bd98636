"""A gRPC client of the cluster from the foreign package `grpcio`, with stubs made from proto/ when a test runs."""

import atexit
import importlib
import os
import shutil
import sys
import tempfile

import cluster

grpc = cluster.need_module("grpc")
cluster.need_module("grpc_tools.protoc")


def _stubs():
    from grpc_tools import protoc

    out = tempfile.mkdtemp(prefix="longspan-stubs-")
    atexit.register(shutil.rmtree, out, True)
    proto = os.path.join(cluster.ROOT, "proto")
    status = protoc.main(["protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}",
                          os.path.join(proto, "longspan.proto"), os.path.join(proto, "health.proto")])
    if status:
        sys.exit(f"protoc failed: {status}")
    sys.path.insert(0, out)
    return [importlib.import_module(m) for m in ("longspan_pb2", "longspan_pb2_grpc", "health_pb2", "health_pb2_grpc")]


pb, _pb_grpc, health, _health_grpc = _stubs()


class Rpc:
    def __init__(self, address, credentials=None):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
        self.inference = _pb_grpc.InferenceStub(self.channel)
        self.cluster = _pb_grpc.ClusterStub(self.channel)
        self.health = _health_grpc.HealthStub(self.channel)

    def generate(self, timeout=120, **fields):
        return self.inference.Generate(pb.GenerateRequest(**fields), timeout=timeout)

    def whole(self, timeout=120, **fields):
        """-> (text, token ids, log-probabilities, the last message's done)"""
        text, ids, logprobs, done = "", [], [], None
        for m in self.generate(timeout, **fields):
            assert done is None, "a message after the last"
            text += m.text
            ids += m.token_ids
            logprobs += m.logprobs
            done = m.done if m.HasField("done") else None
        return text, ids, logprobs, done

    def close(self):
        self.channel.close()
