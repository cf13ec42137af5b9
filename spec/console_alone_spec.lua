--- The console without SSH: what it shows of the time, and what becomes of one that fails.

local log = require "korv.log"
local open_console = require "korv.console".open
local support = require "spec.support"
local uv = require "luv"

describe("a console's clock", function()
  local hrtime, now = uv.hrtime, nil

  setup(function()
    uv.hrtime = function() return now end -- luacheck: ignore 122
  end)
  teardown(function() uv.hrtime = hrtime end) -- luacheck: ignore 122

  -- What is shown of a request that takes so long.
  local function shown(nanoseconds)
    local written, handlers = {}, nil
    local caller = {
      write = function(_, text) written[#written + 1] = text return true end,
      read = function() end,
      message = function()
        now = now + nanoseconds
        handlers.answer("1", 200, "null", false)
        return true
      end,
    }
    local routes = { entries = function() return {} end }
    handlers = open_console(caller, { fingerprint = "SHA256:x" }, { name = "dumb", columns = 80 },
      { options = {}, generation = { app = { routes = routes } } })
    now = 0
    handlers.data "GET /hello\n"
    return table.concat(written):match "200 in (%C+)"
  end

  it("goes over from milliseconds to seconds where they would be a thousand", function()
    for nanoseconds, text in pairs {
      [0] = "0.0 ms", [1260000] = "1.3 ms", [999949999] = "999.9 ms", [999950000] = "1.00 s", [1000000000] = "1.00 s",
      [59996000000] = "60.00 s", [90060000000] = "90.06 s",
    } do
      assert.equal(text, shown(nanoseconds))
    end
  end)
end)

describe("a console that fails", function()
  local problems, log_error = {}, log.error

  setup(function()
    log.error = function(format, ...) problems[#problems + 1] = format:format(...) end
  end)
  teardown(function()
    log.error = log_error
    support.finish() -- luv does not survive the end of a program with a handle that is half closed
  end)

  it("is logged and closed, whichever turn it fails in", function()
    for i, input in ipairs { "GET /hello\n", "unknown\nGET /hello\n" } do
      local status, written = nil, 0
      local caller = {
        write = function() written = written + 1 return true end,
        read = function() end,
        message = function() error "out of order" end,
        finish = function(_, given) status = given end,
      }
      local routes = { entries = function() return {} end }
      local handlers = open_console(caller, { fingerprint = "SHA256:x" }, { name = "dumb", columns = 80 },
        { options = {}, generation = { app = { routes = routes } } })
      handlers.data(input)
      assert(support.wait_for(function() return status end), "it goes on")
      assert.same({ 1, i }, { status, #problems })
      assert.matches("a console failed: .*out of order.*stack traceback", problems[i])
      local before = written
      handlers.data "help\n"
      assert.equal(before, written)
    end
  end)
end)
