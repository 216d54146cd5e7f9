"""The provider as it is in the checkout, and an Airflow that is configured by nothing else."""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE)]

# Before anything imports Airflow, which reads its configuration then.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="polder-airflow-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "false"
# A busy machine may take long for what costs little: the tests measure processor time.
os.environ["AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT"] = "600"
