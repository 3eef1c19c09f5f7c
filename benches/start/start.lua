-- wrk: one start a request, every address once, one in a hundred of somebody. RUN sets the runs apart.
local run, next_thread = os.getenv("RUN") or "0", 0

function setup(thread)
  thread:set("id", next_thread)
  next_thread = next_thread + 1
end

function init()
  count = 0
end

function request()
  count = count + 1
  local who = count % 100 == 0 and ("known-%s-%d-%d@example.com"):format(run, id, count / 100)
    or ("unknown-%s-%d-%d@example.org"):format(run, id, count)
  return wrk.format("POST", "/api/auth/recovery/start", { ["Content-Type"] = "application/json" },
    ('{"email":"%s"}'):format(who))
end
