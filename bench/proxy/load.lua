-- The load of the cost race, the same for every peer: 1,000 requests that differ in their
-- x-user header, built once, so that a balancer that hashes spreads them and wrk stays cheap.
-- Argument "close" asks for a new connection per request, "pools=N" for the hosts of N pools in turn.

local requests = {}
local next_request = 0

function init(args)
  local headers = { ["Host"] = "bench.example" }
  local pools = 0
  for _, argument in ipairs(args) do
    if argument == "close" then headers["Connection"] = "close" end
    pools = tonumber(argument:match("^pools=(%d+)$")) or pools
  end
  for user = 1, 1000 do
    headers["x-user"] = "user" .. user
    if pools > 0 then headers["Host"] = "pool" .. (user % pools) .. ".bench.example" end
    requests[user] = wrk.format("GET", wrk.path, headers)
  end
end

function request()
  next_request = next_request % 1000 + 1
  return requests[next_request]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "microseconds": %d, "bytes": %d, "p50_us": %d, "p99_us": %d, ' ..
    '"errors": {"status": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}}\n',
    summary.requests, summary.duration, summary.bytes,
    latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
