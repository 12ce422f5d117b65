#!/usr/bin/env bash
# Guess: mosaicml-streaming reads a public S3 bucket without credentials: its S3 downloader has a second, unsigned attempt for this case.
# Fact: the second attempt never runs. The downloader catches NoCredentialsError where it creates boto3's client; boto3 raises it at the
#   first request. So a public object raises NoCredentialsError, which an unsigned client of the same boto3 reads.
# Why it matters: public corpora are given as s3:// addresses, and the nodes of a cluster seldom have AWS credentials. The https://
#   address of the same object works.
# Seen with mosaicml-streaming 0.13.0, boto3 1.44.8, moto 5.2.5 as the server.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 mosaicml-streaming==0.13.0 boto3==1.44.8 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5 2>/dev/null
cat > "$folder/public.py" <<'PY'
import importlib.machinery
import os
import sys
import types
from importlib import metadata

# The library imports torchvision for image formats, which this data does not have; its build for a GPU does not load beside torch's for CPUs.
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets"):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__, module.__spec__ = [], importlib.machinery.ModuleSpec(name, None)
    module.VisionDataset = type("VisionDataset", (), {})
    module.to_tensor = None
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
sys.modules["torchvision"].datasets = sys.modules["torchvision.datasets"]

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
endpoint = "http://{}:{}".format(*server.get_host_and_port())
os.environ["S3_ENDPOINT_URL"] = endpoint
owner = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
owner.create_bucket(Bucket="corpus", ACL="public-read")
owner.put_object(Bucket="corpus", Key="train/index.json", Body=b"public", ACL="public-read")

from streaming.base.storage.download import CloudDownloader

print(f"mosaicml-streaming {metadata.version('mosaicml-streaming')}, boto3 {boto3.__version__}")
unsigned = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(signature_version=UNSIGNED))
print("an unsigned client reads:", unsigned.get_object(Bucket="corpus", Key="train/index.json")["Body"].read())
try:
    CloudDownloader.direct_download("s3://corpus/train/index.json", f"{sys.argv[1]}/index.json")
except Exception as error:
    print(f"CloudDownloader: {type(error).__name__}: {error}")
    failed = type(error).__name__ == "NoCredentialsError"
else:
    failed = False
server.stop()
sys.exit(0 if failed else "the downloader did not end with NoCredentialsError")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/public.py" "$folder" 2>/dev/null
