// Original file: proto/keyprovider/keyprovider.proto


export interface keyProviderKeyWrapProtocolInput {
  'json'?: (Buffer | Uint8Array | string);
}

export interface keyProviderKeyWrapProtocolInput__Output {
  'json': (Buffer);
}
