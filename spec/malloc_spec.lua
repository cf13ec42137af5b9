--- A small request costs no malloc of korv's own, once the server is warm: what its buffers and requests need is kept for the next one.
-- The server is a process into which spec/c/count_allocations.c is preloaded; what libssh and Lua allocate is not counted.

local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local COUNTER = support.root .. "/build/spec/c/libcount_allocations.so"
local LOAD = support.root .. "/build/spec/bench/load"
local FEW, MANY = 1000, 10000 -- requests
local GROWTH = 100 -- calls: buffers grow a few times in a connection's life, as its traffic has it; fewer than batches of 64 in MANY

describe("allocations", function()
  local server

  local function count() return string.unpack("=I8", (assert(support.read(support.path "allocations")))) end

  local function load(requests, ...)
    local before = count()
    local result = support.run { LOAD, "--port", tostring(server.port), "--key", support.key "client", "--requests", tostring(requests),
      ... }
    assert.equal(0, result.code, result:describe "failed")
    return count() - before
  end

  -- A connection costs about the same however many requests it carries: what is left is what the requests cost.
  local function assert_none(...)
    load(MANY, ...) -- warms up
    local few = load(FEW, ...)
    assert.is_true(few > 0, "nothing is counted")
    local more = load(MANY, ...) - few
    assert.is_true(more < GROWTH, ("%d for %d requests"):format(more, MANY - FEW))
  end

  setup(function()
    assert(uv.fs_stat(COUNTER), COUNTER .. " is not built")
    uv.os_setenv("ALLOCATIONS", support.path "allocations")
    uv.os_setenv("LD_PRELOAD", COUNTER)
    local nowhere = assert(uv.fs_open("/dev/null", "w", 0)) -- lines of the log that wait for who reads them gather in a buffer that grows
    server = waiting.serve({}, { script = "scripts/endpoints/hello.lua", stderr = nowhere })
    uv.fs_close(nowhere)
    uv.os_unsetenv("LD_PRELOAD")
  end)
  teardown(support.finish)

  for name, options in pairs {
    ["lines, one at a time"] = { "--encoding", "line" },
    ["lines, 64 in flight"] = { "--encoding", "line", "--in-flight", "64" },
    ["gzip, one at a time"] = { "--encoding", "gzip" },
    ["gzip, 32 in flight"] = { "--encoding", "gzip", "--in-flight", "32" },
    ["lines on 16 connections"] = { "--encoding", "line", "--connections", "16" },
    ["bodies that are echoed"] = { "--verb", "STORE", "--resource", "/echo" },
  } do
    it("are none for " .. name, function() assert_none(table.unpack(options)) end)
  end
end)
