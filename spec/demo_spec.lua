--- scripts/demo, the first command that a newcomer runs: in a clean copy of the checkout.

local checkout = require "spec.checkout"
local support = require "spec.support"
local uv = require "luv"

describe("scripts/demo", function()
  local copy

  setup(function() copy = uv.fs_realpath(checkout "checkout") end)

  -- The processes that work in the copy.
  local function processes()
    local found = {}
    for name in uv.fs_scandir_next, (uv.fs_scandir "/proc") do
      local pid = tonumber(name)
      if pid and uv.fs_readlink(("/proc/%d/cwd"):format(pid)) == copy then found[#found + 1] = pid end
    end
    return found
  end

  local function all_gone() return #processes() == 0 end

  teardown(function()
    for _, pid in ipairs(copy and processes() or {}) do uv.kill(pid, "sigkill") end
    support.finish()
  end)

  local function demo(...)
    local done = support.run({ "env", "-C", copy, "-uKORV_BUILD", "scripts/demo", ... }, { timeout = 240 })
    assert(done.code == 0, done:describe "failed")
    for _, part in ipairs { "korv: listening on all interfaces, port ", '200 {"msg":"Hello World!"}', "404 null" } do
      assert.is_truthy(done.stdout:find(part, 1, true), done:describe("lacks " .. part))
    end
    return done
  end

  it("--once shows what the calls bring and leaves no process behind", function()
    local done = demo "--once"
    assert.is_nil(done.stdout:find("To try next", 1, true))
    assert.is_true(support.wait_for(all_gone, 5))
  end)

  it("leaves a server running, and the commands that it prints work, the last of which stops it", function()
    local commands, last = {}, nil
    for line in demo().stdout:match("To try next:(.*)$"):gmatch "\n  ([^\n]+)" do
      commands[#commands + 1], last = line, line
    end
    assert.equal(4, #commands)
    assert.matches("^kill %d+$", last)
    for _, command in ipairs(commands) do
      local done = support.run { "env", "-C", copy, "-uKORV_BUILD", "sh", "-c", command }
      assert.same({ 0, "" }, { done.code, done.stderr }, command)
      assert.is_true(command == last or #done.stdout > 0, command)
    end
    assert.is_true(support.wait_for(all_gone, 5))
  end)

  it("run again replaces the server of the last time", function()
    demo()
    local before = processes()
    assert.equal(1, #before)
    local done = demo "--once"
    assert.matches("stopped the server of the last demo", done.stdout)
    assert.is_true(support.wait_for(all_gone, 5))
  end)
end)
