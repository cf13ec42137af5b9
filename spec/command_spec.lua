--- The command: its help, and the arguments that it refuses.

local commanding = require "spec.commanding"
local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"

local assert_complains = commanding.assert_complains

describe("korv", function()
  teardown(support.finish)

  for arguments, parts in pairs {
    ["--help"] = { "Usage: korv ", "serve", "call", "stream", "describe", "keygen", "Examples:" },
    ["serve --help"] = { "Usage: korv serve ", "--host ADDR", "--port N", "--host-key FILE", "--authorized-keys FILE", "authorized_keys" },
    ["call --help"] = { "Usage: korv call ", "-i KEY", "--known-hosts FILE", "--accept-new", "--ssh", "--timeout S", "BODY" },
    ["stream --help"] = { "Usage: korv stream ", "-i KEY", "--ssh", "--timeout S", "BODY", "| head", "Examples:" },
    ["describe --help"] = { "Usage: korv describe ", "-i KEY", "--json", "--prefix RESOURCE", "/korv", "Examples:" },
    ["keygen --help"] = { "Usage: korv keygen ", "-C TEXT", "FILE", "Examples:" },
    ["--version"] = { "korv " .. korv.version },
  } do
    it(arguments .. " tells it on stdout and ends with 0", function()
      local argv = { support.korv }
      for word in arguments:gmatch "%S+" do argv[#argv + 1] = word end
      local done = support.run(argv)
      assert.same({ 0, "" }, { done.code, done.stderr })
      for _, part in ipairs(parts) do assert.is_truthy(done.stdout:find(part, 1, true), part) end
    end)
  end

  it("may be called by a symbolic link from anywhere", function()
    local link = support.path "linked"
    assert(uv.fs_symlink(support.korv, link))
    local done = support.run { "sh", "-c", 'cd / && "$0" --version', link }
    assert.same({ 0, "korv " .. korv.version .. "\n", "" }, { done.code, done.stdout, done.stderr })
  end)

  it("says in another Lua that it needs 5.4", function()
    local done = support.run({ "lua5.4", "-e", '_VERSION = "Lua 5.1" require "korv"' }, { env = { LUA_PATH = package.path } })
    assert.equal(1, done.code)
    assert.matches("korv needs Lua 5.4, and this is Lua 5.1: start it with lua5.4", done.stderr, nil, true)
  end)

  for arguments, parts in pairs {
    ["serve --prot 1 x.lua"] = { "--prot", "did you mean '--port'? See korv serve --help" },
    ["call --acept-new h GET /"] = { "--acept-new", "did you mean '--accept-new'? See korv call --help" },
    ["sreve"] = { "sreve", "did you mean 'serve'", "serve, call, stream, describe, keygen; see korv --help" },
    [""] = { "command", "serve, call, stream, describe, keygen; see korv --help" },
    ["call localhost GET"] = { "RESOURCE", "see korv call --help" },
    ["stream localhost GET"] = { "RESOURCE", "see korv stream --help" },
    ["serve"] = { "SCRIPT", "see korv serve --help" },
    ["describe"] = { "HOST", "see korv describe --help" },
    ["describe --prefix x localhost"] = { "--prefix", "such as /korv", "see korv describe --help" },
    ["keygen a b"] = { "too many arguments", "see korv keygen --help" },
    ["serve --port http x.lua"] = { "--port", "see korv serve --help" },
    ["call --timeout soon localhost GET /"] = { "--timeout", "see korv call --help" },
  } do
    it(("refuses the arguments %q, names what is wrong and what to do"):format(arguments), function()
      local argv = { support.korv }
      for word in arguments:gmatch "%S+" do argv[#argv + 1] = word end
      assert_complains(support.run(argv), 64, table.unpack(parts))
    end)
  end
end)
