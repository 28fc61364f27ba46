# The service of examples/serve.py on the CPU: docker build -t lora-moe-hgd .
# The weights come with the package, and nothing is fetched at run time.
FROM python:3.11-slim-bookworm

ENV HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# PyTorch's own index has it without CUDA.
RUN pip install --no-cache-dir --constraint constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu ".[serve]" \
    && useradd --uid 10001 --create-home app
COPY examples/serve.py ./

USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
CMD ["python", "serve.py", "--host", "0.0.0.0"]
