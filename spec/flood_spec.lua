--- A peer that sends more than it may have answered, as fast as OpenSSH can.

local support = require "spec.support"

local MEBIBYTE = 1024 * 1024

-- The most memory that a process has had so far.
local function peak_bytes(pid)
  return 1024 * tonumber(support.read(("/proc/%d/status"):format(pid)):match "VmHWM:%s+(%d+)")
end

describe("a peer", function()
  teardown(support.finish)

  for what, line in pairs {
    ["cancels, which have no answer"] = '{"cancel":1}',
    ["messages that are refused"] = "{}",
  } do
    it("that floods its channel with " .. what .. " costs the server no memory", function()
      local server = support.serve "spec/data/app.lua"
      local before = peak_bytes(server.pid)
      local done = support.run {
        "sh", "-c", [[yes "$1" | head -c 30000000 | ssh -F none -i "$2" -p "$3" -o IdentitiesOnly=yes -o BatchMode=yes \
          -o UserKnownHostsFile="$4" -s 127.0.0.1 korv | tail -c 100]],
        "sh", line, support.key "client", tostring(server.port), support.known_hosts(server, "flooded"),
      }
      assert.same({ 0, "" }, { done.code, done.stderr })
      local grown = peak_bytes(server.pid) - before
      assert.is_true(support.patience > 1 or grown < 8 * MEBIBYTE, ("%.1f MiB"):format(grown / MEBIBYTE))
    end)
  end
end)
